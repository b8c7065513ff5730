"""Model families as small torch definitions; each module imports torch, so import them late."""
