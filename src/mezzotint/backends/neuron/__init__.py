"""Graphs with fixed shapes in the place of diffusers' modules.

`runtime` loads them onto a chip's cores, `standin` runs them on a CPU and refuses what the chip refuses, and
`graphs` calls either: rows padded to the compiled batch, spread over the cores, and cut back. The sampling
around them is `backends.diffusers`', unchanged. What lies on disk, and whether to trust it, is
`models.artefact`'s.
"""
