"""Models of other people as ``filip eval`` takes them, by entry points of the group ``filip.encoders``.

Their towers are read off their authors' code and tested at random weights; no weights have been evaluated here.
"""

from filip.eval.encoders import Backend

DECLIP = Backend(
    "filip_research.declip", "DeclipEncoder", "declip:FILE[:words] (FILIP and DeFILIP of DeCLIP's authors)"
)
FLAIR = Backend("filip_research.flair", "FlairEncoder", "flair:FILE (what FLAIR's authors published)")
FG_CLIP = Backend(
    "filip_research.fgclip", "FgClipEncoder", "fgclip:FOLDER[:long|:box] or fgclip:OWNER/NAME (FG-CLIP and FG-CLIP 2)"
)
RIDGE = Backend(
    "filip_research.ridge", "RidgeEncoder", "ridge:FOLDER[:pairs] (shards and captions of a source; fitted when read)"
)
