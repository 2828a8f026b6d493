"""Slides: a whole slide in; a table of its tiles, a verdict and pictures out.

reader, slide    a slide file as pixels at any resolution
resolution       the micrometers per pixel that a file states
field            what one input of the network shows, and how it is read
tissue           where the tissue is
tissue_files     the same by a mask or by regions
grid             which tiles are read
slide_result     what is known about a slide at the end
probability_map  the mean over the tiles that cover each place, and its colors
heatmap_files    the map over the overview, and as a pyramid for slide viewers
qupath_objects   tiles and tissue as GeoJSON for QuPath
viewer           a page with the slide, its map and its tiles
"""
