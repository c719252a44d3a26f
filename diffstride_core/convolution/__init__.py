"""A convolution and the resize of what it makes, as one operation.

`plan` says what is decided before an array is touched, `checks` what is refused, `evaluation` which
order of the two costs less, and `fused` takes the resize first.
"""
