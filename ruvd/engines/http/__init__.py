"""HTTP for engines: transports, time-outs and reading."""
