"""`mezzotint deploy`: from an AWS account to a running service, and back to nothing.

It drives terraform, aws and kubectl as they are installed, and knows neither the engine nor the server.

- `stages`: what `up` and `down` do, in order, as literal tables
- `config`, `checkout`, `folder`: what is asked for, where its files are, what was done so far
- `interrupts`, `processes`, `runner`, `redaction`, `pace`: one call of a tool, with its limit and its tries
- `aws`, `kubectl`, `terraform`: the three tools
- `deployment`: all of these together, as the stages get them
- `checks`, `site`, `stored_secrets`, `readiness`, `keys`, `verify`: what the stages of `up` do
- `down`, `leftovers`, `data`, `proof`: what takes it all away, and shows that it is gone
"""
