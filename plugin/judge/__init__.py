"""What is wrong with one thing: bios and devices, pages, daemons, locks, panics."""
