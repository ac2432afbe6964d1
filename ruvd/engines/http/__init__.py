"""HTTP for engines: transports, timeouts and the coalescing of reads."""
