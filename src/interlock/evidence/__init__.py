"""Evidence that stays valid however often one looks: e-processes and confidence sequences, pure maths."""
