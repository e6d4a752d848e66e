"""L2, the vector tier: indexes over the vectors of one namespace, derived from L3."""
