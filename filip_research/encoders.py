"""Models of other people as ``filip eval`` takes them, by entry points of the group ``filip.encoders``.

Their towers are read off their authors' code and tested at random weights; no weights have been evaluated here.
"""

from filip.eval.encoders import Backend

DECLIP = Backend(
    "filip_research.declip", "DeclipEncoder", "declip:FILE[:words] (FILIP and DeFILIP of DeCLIP's authors)"
)
WUKONG = Backend(
    "filip_research.wukong",
    "WukongEncoder",
    "wukong:FILE[:VOCABULARY][:padding] (CLIP, FILIP and Wukong of FILIP's authors, in Chinese)",
    converts=True,
)
RIDGE = Backend(
    "filip_research.ridge", "RidgeEncoder", "ridge:FOLDER[:product] (shards and captions of a source; fitted when read)"
)
