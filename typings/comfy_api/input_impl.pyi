from .latest import InputImpl

VideoFromComponents = InputImpl.VideoFromComponents
VideoFromFile = InputImpl.VideoFromFile
