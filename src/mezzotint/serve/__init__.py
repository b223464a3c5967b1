"""The HTTP server: a gateway and engine replicas as Ray Serve deployments.

One line runs through it: `api/` turns a surface's wire schema into a `GenerationRequest`, `gateway` completes
it and asks a replica, `replica` holds one engine and answers with events, `wire` is what crosses between.
"""
