"""What leaves the node for other systems: metrics in Prometheus' text format."""
