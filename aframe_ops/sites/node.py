"""What a site says about the disks of its nodes; shared by the batch systems whose jobs start on a shared disk."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from aframe_ops.containers.node_install import InstallError, require_node_disk
from aframe_ops.sites.part import Part, Program


def _node_disk(text: str) -> str:
    try:
        require_node_disk(text)
    except InstallError as e:
        raise ValueError(str(e)) from None
    return text


def _folder(text: str) -> str:
    if ".." in text.split("/"):
        raise ValueError("'..' is not allowed in it")
    return text


class NodeSite(Part):
    """The node's own disk, and what goes there. See docs/offline-nodes.md."""

    node_disk: Annotated[str, AfterValidator(_node_disk)] | None = Field(
        default=None, description="disk of the node: $SLURM_TMPDIR, $TMPDIR or the like, read in the job, or an absolute path"
    )
    wheelhouse: Annotated[str, Field(pattern=r"^/[^\x00-\x1f\x7f$\\]*$"), AfterValidator(_folder)] | None = Field(
        default=None, description="folder of `aframe wheelhouse`; jobs install from it onto node_disk. None: python has the project"
    )
    python: Program | None = Field(
        default=None,
        description="interpreter on the nodes or in the container; None: the one that submits, or with a wheelhouse one on the path",
    )
    stage: bool = Field(default=True, description="with node_disk: inputs are copied there before they are opened, scratch is there")

    @model_validator(mode="after")
    def _has_disk(self) -> NodeSite:
        if self.wheelhouse and not self.node_disk:
            raise ValueError("wheelhouse needs node_disk, the disk that jobs install onto; such as node_disk: $SLURM_TMPDIR")
        return self
