"""Which models there are, where they lie, and how one is loaded.

`catalogue` names them, `locations` finds them on disk, `added` what is served beside them, `manifest` holds
their files to their hashes, `pulling` fetches them, `reading` reads them, and `loading` makes a backend of
one. Only the last two import torch.
"""
