"""The best mix of formats for a budget of bits, bytes, milliseconds or loss."""
