"""Every parser fed with what nobody meant it to read: only errors of ours may come out.

`make fuzz` tries thousands of inputs where the suite tries a few (hypothesis profile `fuzz`).
"""
