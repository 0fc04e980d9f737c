"""Things to look at: the demo of the main job and the model that it uses."""
