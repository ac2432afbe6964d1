"""An engine whose answers are checked against the JSON Schema that was asked for."""
