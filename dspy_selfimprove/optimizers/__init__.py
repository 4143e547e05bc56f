"""Ways to improve a program, behind one protocol (`optimizer.py`)."""
