"""FreeBSD kernel dumps: file to physical to virtual memory."""
