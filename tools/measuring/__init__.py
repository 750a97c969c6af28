"""Time, memory and machine code, measured."""
