"""The network of an estimator, as its callbacks see it."""

from bpaccel.network import Network


class EstimatorNetwork(Network):
    """A `Network` that is given targets as its estimator is: class labels, and not what they are encoded to.

    Parameters
    ----------
    encode : callable
        ``(y) -> (N, O)``: targets for the network.
    """

    def __init__(self, *args, encode, **options):
        super().__init__(*args, **options)
        self._encode = encode

    def __reduce__(self):
        # A copy is a network by itself: it outlives the training, and takes no estimator with it into a pickle.
        state = self.__getstate__()
        del state["_encode"]
        return Network.__new__, (Network,), state

    def rows(self, X, y, sample_weight=None, *, widest=False):
        return super().rows(X, self._encode(y), sample_weight, widest=widest)
