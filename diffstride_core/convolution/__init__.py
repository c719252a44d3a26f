"""A convolution and the resize of its output, as one operation.

`plan` holds what is decided before an array is touched. `checks` checks the arguments. `evaluation`
chooses the cheaper order of the two. `fused` evaluates the resize first.
"""
