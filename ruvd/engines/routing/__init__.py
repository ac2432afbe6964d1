"""Several engines behind one: the model of a request chooses the engine."""
