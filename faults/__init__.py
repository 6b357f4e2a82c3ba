"""`make faults`: long commands under kills, I/O errors, lack of memory and damaged files, and what became of them."""
