"""`mamba-aot bench`: times ops, blocks and models on the device at hand, after checking what they compute.

shapes       what can be timed
suites       what is recorded
cases        arguments and reference of every op
correctness  what a result is held to before it is timed
floors       the least time that bytes and exponentials leave
timing       CUDA graphs and events, or the wall clock; host time
peers        what to compare with
models       block, decode, prefill
machine      the first line
table        the rows, as text and as JSON
runner       all of it in order
"""
