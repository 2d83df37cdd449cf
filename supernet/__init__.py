"""The model that can be many: every linear at several bit-widths, each with its own small trained adapter."""
