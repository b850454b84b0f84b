"""What a site says about each batch system: parts of `aframe_ops.site.SiteConfig`."""
