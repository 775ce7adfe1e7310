// Runs every native pass on one problem: neon_main INPUT OUTPUT (see test_neon.py, which writes and reads them).
#include <cstdint>
#include <cstdio>
#include <vector>

extern "C" {
const char* interaction_isas();
int interaction_run(const char*, const void*, const void*, const int64_t*, const int64_t*, int64_t, int64_t, int64_t, int, int,
                    int, float, int, float*, float*, const float*, const float*, void*, void*, float*, float*, int64_t,
                    const int64_t*, const int64_t*, int64_t, int64_t);
}

template <class T>
static std::vector<T> take(FILE* file, int64_t count) {
  std::vector<T> numbers(count);
  if (fread(numbers.data(), sizeof(T), count, file) != static_cast<size_t>(count)) numbers.clear();
  return numbers;
}

int main(int, char** names) {
  FILE *in = fopen(names[1], "rb"), *out = fopen(names[2], "wb");
  const auto size = take<int64_t>(in, 4);  // images, texts, features, 1 for bfloat16
  const int64_t b = size[0], t = size[1], d = size[2];
  const auto image_offsets = take<int64_t>(in, b + 1), text_offsets = take<int64_t>(in, t + 1);
  const int64_t p = image_offsets[b], q = text_offsets[t], bytes = size[3] ? 2 : 4;
  auto image = take<char>(in, p * d * bytes), text = take<char>(in, q * d * bytes);
  auto grad_i2t = take<float>(in, b * t), grad_t2i = take<float>(in, b * t);
  std::vector<float> i2t(b * t), t2i(b * t), of_image(p * d), of_text(q * d);
  std::vector<uint8_t> i2t_map(p * t), t2i_map(b * q);
  const auto write = [&] {
    for (auto* part : {&i2t, &t2i, &of_image, &of_text}) fwrite(part->data(), 4, part->size(), out);
  };
  int code = 0;
  const auto run = [&](float temperature, int shifted, bool forward) {
    code |= interaction_run("", image.data(), text.data(), image_offsets.data(), text_offsets.data(), b, t, d,
                            static_cast<int>(size[3]), 0, 1, temperature, shifted, forward ? i2t.data() : nullptr,
                            t2i.data(), grad_i2t.data(), grad_t2i.data(), i2t_map.data(), t2i_map.data(), of_image.data(),
                            of_text.data(), 0, nullptr, nullptr, 0, 0);
  };
  for (const int way : {0, 1, 2}) {  // the maximum, and the smooth one within the range of float32 and beyond
    for (const bool forward : {true, false}) run(way ? 0.05f : 0.0f, way == 2, forward);
    write();
  }
  fclose(out);
  puts(interaction_isas());
  return code;
}
