"""Slides: a whole slide in; a table of its tiles, a verdict and pictures out.

reader, slide    a slide file as pixels at any resolution
resolution       the micrometers per pixel that a file states
field            what one input of the network shows, and how it is read
tissue           where the tissue is
grid             which tiles are read
slide_result     what is known about a slide at the end
"""
