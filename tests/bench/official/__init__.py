"""How long our blocks take against their official or most used public implementations."""
