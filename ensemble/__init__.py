"""The cascade that serves a feed: stages on batched arrays, the release they read, the Triton server, the client."""
