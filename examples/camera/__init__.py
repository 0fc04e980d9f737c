"""An application that classifies frames with whatever model Shallop brings; see README.md."""
