"""Policies: which sites may take which formats; see `onnxq.budget.policy`."""
