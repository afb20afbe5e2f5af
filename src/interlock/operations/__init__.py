"""The use cases, one function each: the API, the command line and Python code all call these."""
