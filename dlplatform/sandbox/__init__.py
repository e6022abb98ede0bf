"""Running a program that nobody vouches for: alone, with limits, without a way out. Linux only; see docs/adr/0015.

`process` is the outside, for whoever starts such a program. What it starts is `python -m dlplatform.sandbox`: a warden
(`warden`) that watches the limits, a first process of a new world (`inside`, `view`), and the program in it.
"""
