// The loop of the update, for the instruction set that is in force where this file is included: the
// compiler's own vectors.

template <typename T>
void update(
    T* __restrict weight, T* __restrict velocity, const T* __restrict gradient, int64_t count,
    double learning_rate, double momentum, double weight_decay) {
  const T keep = static_cast<T>(momentum);
  const T decay = static_cast<T>(weight_decay * learning_rate);
  const T rate = static_cast<T>(learning_rate);
  for (int64_t i = 0; i < count; ++i) {
    const T v = keep * velocity[i] - decay * weight[i] - rate * gradient[i];
    velocity[i] = v;
    weight[i] += v;
  }
}
