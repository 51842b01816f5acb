"""The feature compiler's parts: a graph builder, key look-ups, and one module for each kind of operator."""
