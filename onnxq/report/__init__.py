"""The page that explains an artifact: what was asked and reached, and where the loss comes from.

`facts` reads what the artifact says of itself, `measures` runs it beside its original, `fixes` says
what row of the recipe would help a site, `charts` draws, `page` writes one HTML file.
"""
