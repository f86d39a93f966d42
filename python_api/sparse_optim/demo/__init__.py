"""The command line's work: data sets, small models, methods, training in lockstep, reports."""
