from .latest import InputImpl

VideoFromComponents = InputImpl.VideoFromComponents
