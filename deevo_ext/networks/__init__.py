"""Networks given as flat rows: images in, losses and ranks or logits out.

`forward` is the way in. `graph` makes a module a network graph, whose layers `engines` compute;
`execution` feeds images and runs members one by one, `batched` many at once.
"""
