"""The cascade that serves a feed: stages on batched arrays, the release, the server, the client."""
