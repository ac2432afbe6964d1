"""The audit log: records in a hash chain, their outputs, and the check of the chain."""
