"""Native code and, later, one folder for each custom operator."""
