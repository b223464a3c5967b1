"""Which models there are, where they lie, and how one is loaded.

`catalogue` names them, `locations` finds them on disk, `added` what is served beside them, `manifest` holds
their files to their hashes, and `pulling` fetches them; none of these imports torch. `weights` and the
modules called `reading` read them, and `loading` makes a backend of one.
"""
