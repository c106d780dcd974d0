// choose() of loops_body.h for instruction sets without mask registers; included before it, in the
// same place: bits are spread over the lanes of a vector.
template <class V, class T, int kLanes>
inline V choose_lanes(uint32_t bits, V yes, V no, T exponent) {
  V powers;
  for (int lane = 0; lane < kLanes; ++lane) powers[lane] = static_cast<T>(T{1} << lane);
  const V taken = (V{} + static_cast<T>(bits)) & powers;
  const V special = yes & exponent;
  return ((taken != 0) & (special != exponent)) ? yes : no;
}

inline Words choose(uint32_t bits, Words yes, Words no, uint32_t exponent) {
  return choose_lanes<Words, uint32_t, kFloats>(bits, yes, no, exponent);
}

inline Halves choose(uint32_t bits, Halves yes, Halves no, uint16_t exponent) {
  return choose_lanes<Halves, uint16_t, 2 * kFloats>(bits, yes, no, exponent);
}
