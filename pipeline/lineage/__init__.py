"""What a model was made from and what was made from something: `reasrm lineage`.

`walk` goes up from a version to the preference data, `down` the other way. `verify` hashes what lies in S3 again,
`diff` says what is different between two versions. `text`, `openlineage` and `page` show it.
"""

from pipeline.lineage.text import render, rich_tree
from pipeline.lineage.walk import LineageNode, artifacts, chain

__all__ = ["LineageNode", "artifacts", "chain", "render", "rich_tree"]
