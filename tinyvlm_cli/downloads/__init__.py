"""Files from public addresses: what `tinyvlm data get` fetches, verifies, unpacks and records.

The addresses are in conf/; this folder names none, and never executes what it fetched.
"""
