"""The recipes shipped with onnxq: TOML files, one list of passes each."""
