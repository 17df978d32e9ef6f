"""A kernel from the structure of its layers, in the order of the work: `trial` passes one input through the network,
`plan` chooses each layer's form (`forms`), `layout` cuts the kernel into tiles that fit the memory, `factors` keeps
what passes leave (`layers`, `channels`), `contract` multiplies factors, and `tiles` yields tile after tile.
"""
