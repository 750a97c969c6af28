"""The road: its course, lanes and surfaces, as polygons on the ground plane.

Lengths are in metres, angles in radians, anticlockwise from x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

LANE = 3.5  # width
_DASH = (3.0, 6.0)  # length of a dash, and from one to the next
_LINE = 0.15  # width of a painted line
_CROSS_HALF = 3.5  # half of the crossing road's width
_CROSS_REACH = 60.0  # of the crossing road, to both sides
_SIDEWALK = 3.0
_ZEBRA = (2.5, 6.0)  # a zebra crossing begins and ends so far beside the crossing road's edge, from its middle


def arc(x: Any, y: Any, heading: Any, length: Any, turn: Any) -> tuple[Any, Any, Any]:
    """Where one is after a way of constant curvature.

    Args:
        x: Start.
        y: Start.
        heading: At the start.
        length: Of the way, negative backwards.
        turn: Change of the heading on the way.

    Returns:
        x, y and heading at the end, in the shape that the arguments broadcast to.
    """
    chord = length * np.sinc(turn / (2 * np.pi))
    return x + chord * np.cos(heading + turn / 2), y + chord * np.sin(heading + turn / 2), heading + turn


@dataclass(frozen=True)
class Road:
    """A road of constant curvature for traffic on the right, with at most one road that crosses it.

    A place is told by the way along the middle line, from its start, and the offset from it to the left.

    Attributes:
        x: Of the start of the middle line.
        y: Likewise.
        heading: Of the middle line there.
        curvature: 1/m, positive to the left.
        begin: Way at which the road begins, negative.
        end: Way at which it ends.
        lanes: Number of lanes ahead (on the right) and back (on the left).
        parking: Width of the parking strips on the right and on the left, 0 for none.
        crossing: Way at which the crossing road's middle lies, None for no such road.
    """

    x: float
    y: float
    heading: float
    curvature: float
    begin: float
    end: float
    lanes: tuple[int, int]
    parking: tuple[float, float]
    crossing: float | None

    def pose(self, way: Any, offset: Any) -> tuple[Any, Any, Any]:
        """x, y and the heading of the road at a place; arrays broadcast."""
        x, y, heading = arc(self.x, self.y, self.heading, way, self.curvature * way)
        return x - offset * np.sin(heading), y + offset * np.cos(heading), heading

    @property
    def edges(self) -> tuple[float, float]:
        """Offsets of the right and the left edge of the lanes."""
        return -LANE * self.lanes[0], LANE * self.lanes[1]

    @property
    def kerbs(self) -> tuple[float, float]:
        """Offsets of the right and the left edge of what can be driven on."""
        return self.edges[0] - self.parking[0], self.edges[1] + self.parking[1]

    @property
    def middles(self) -> list[tuple[float, int]]:
        """The offset of each lane's middle, and its direction: 1 ahead, -1 back."""
        ahead = [(-LANE * (0.5 + i), 1) for i in range(self.lanes[0])]
        return ahead + [(LANE * (0.5 + i), -1) for i in range(self.lanes[1])]

    @property
    def sidewalks(self) -> tuple[float, float]:
        """Offsets of the middles of the sidewalks on the right and on the left."""
        return self.kerbs[0] - _SIDEWALK / 2, self.kerbs[1] + _SIDEWALK / 2

    def is_near_crossing(self, way: float, distance: float) -> bool:
        """Whether a way is nearer to the edge of the crossing road than a distance."""
        return self.crossing is not None and abs(way - self.crossing) < _CROSS_HALF + distance

    def surfaces(self) -> dict[str, list[np.ndarray]]:
        """Polygons (N, 2) of x and y, by what they are, in the order in which they cover each other.

        `sidewalk`, `drivable`, `edge_line` (beside lanes), `centre_line` (between the directions), `dash` (between
        lanes of one direction), `zebra`.
        """
        right, left = self.kerbs
        found: dict[str, list[np.ndarray]] = {
            "sidewalk": [self._strip(self.begin, self.end, right - _SIDEWALK, left + _SIDEWALK)],
            "drivable": [self._strip(self.begin, self.end, right, left)],
            "edge_line": [],
            "centre_line": [],
            "dash": [],
            "zebra": [],
        }
        if self.crossing is not None:
            found["sidewalk"].append(self._cross_strip(-_CROSS_REACH, _CROSS_REACH, _CROSS_HALF + _SIDEWALK))
            found["drivable"].append(self._cross_strip(-_CROSS_REACH, _CROSS_REACH, _CROSS_HALF))
            found["centre_line"] += [self._cross_strip(*piece, _LINE / 2) for piece in self._cross_pieces]
            for sign in (-1, 1):
                near, far = sorted(self.crossing + sign * (_CROSS_HALF + side) for side in _ZEBRA)
                bars = np.arange(right + 0.4, left - 0.4, 1.0).tolist()
                found["zebra"] += [self._strip(near, far, bar, bar + 0.5) for bar in bars]
        for begin, end in self._pieces:
            found["edge_line"] += [self._line(begin, end, edge) for edge in self.edges]
            found["centre_line"].append(self._line(begin, end, 0.0))
            inner = [-LANE * i for i in range(1, self.lanes[0])] + [LANE * i for i in range(1, self.lanes[1])]
            for offset in inner:
                starts = np.arange(begin, end - _DASH[0], _DASH[1]).tolist()
                found["dash"] += [self._line(start, start + _DASH[0], offset) for start in starts]
        return found

    def dividers(self) -> list[np.ndarray]:
        """The middle lines (N, 2) of all borders between lanes, dashes joined, without the places where roads cross."""
        offsets = [LANE * i for i in range(1 - self.lanes[0], self.lanes[1])]
        lines = [self._course(*piece, offset) for piece in self._pieces for offset in offsets]
        return lines + [self._cross_strip(*piece, 0.0)[:2] for piece in self._cross_pieces]

    @property
    def _pieces(self) -> list[tuple[float, float]]:
        """Begin and end of the ways on which lines are painted."""
        if self.crossing is None:
            return [(self.begin, self.end)]
        stop = _CROSS_HALF + _ZEBRA[1]
        return [(self.begin, self.crossing - stop), (self.crossing + stop, self.end)]

    @property
    def _cross_pieces(self) -> list[tuple[float, float]]:
        """The offsets between which the crossing road has a line."""
        if self.crossing is None:
            return []
        right, left = self.kerbs
        return [(-_CROSS_REACH, right - _ZEBRA[1]), (left + _ZEBRA[1], _CROSS_REACH)]

    def _course(self, begin: float, end: float, offset: float) -> np.ndarray:
        way = np.linspace(begin, end, max(2, round(abs(end - begin)) + 1))
        return np.stack(self.pose(way, offset)[:2], -1)

    def _strip(self, begin: float, end: float, right: float, left: float) -> np.ndarray:
        return np.concatenate([self._course(begin, end, right), self._course(end, begin, left)])

    def _line(self, begin: float, end: float, offset: float) -> np.ndarray:
        return self._strip(begin, end, offset - _LINE / 2, offset + _LINE / 2)

    def _cross_strip(self, first: float, last: float, half: float) -> np.ndarray:
        """A straight strip across the road, from one offset to another."""
        x, y, heading = self.pose(self.crossing, 0.0)
        ahead, left = np.array([np.cos(heading), np.sin(heading)]), np.array([-np.sin(heading), np.cos(heading)])
        corners = [(first, -half), (last, -half), (last, half), (first, half)]
        return np.array([[x, y] + offset * left + along * ahead for offset, along in corners])
